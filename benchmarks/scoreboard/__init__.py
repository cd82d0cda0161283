"""The scoreboard's parts: what is compared, how a job runs, how it is scored, the report."""
