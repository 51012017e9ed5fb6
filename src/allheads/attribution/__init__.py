"""Reading the twin: linearisations, attribution, interventions. With patterns held fixed the twin is linear."""
