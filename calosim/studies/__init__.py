"""Studies: plans of trainings and evaluations, run in order of need and compared with statistics."""
