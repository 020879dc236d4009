"""The report: one self-contained HTML page about run folders, evaluations, studies and explanations."""
