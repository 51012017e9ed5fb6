"""How well do the parts that an attribution ranks first do the task alone?"""
