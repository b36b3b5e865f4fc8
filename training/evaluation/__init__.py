"""AP, error analysis, calibration and comparison of models."""
