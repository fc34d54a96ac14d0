"""Low credit: one alert per crossing of a threshold, armed again by recovery."""
