"""From a prompt to pictures: pipelines, adapters on top of them, grids."""
