"""Reading the twin: linearisations, attribution, interventions. With patterns frozen the twin is linear."""
