"""Emergence: do the heads of a small transformer take roles before, with or after its ability?"""
