"""The composition root: recipe -> objects -> run folder -> ledger, one file a stage."""
