"""What moves tokens: front door, workers, engines, KV transfer, message fabric, text."""
