"""The arithmetic of frozen layers: functions that save less for the way back, and run faster."""
