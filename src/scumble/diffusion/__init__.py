"""The maths of diffusion training: schedules, objectives, timesteps, loss weights. Torch only."""
