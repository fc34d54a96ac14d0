"""Balance against thresholds: one alert per crossing, armed again by recovery."""
