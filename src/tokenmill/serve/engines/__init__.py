"""What makes tokens, each behind ``Engine``. Engines know no frontend and no routing."""
