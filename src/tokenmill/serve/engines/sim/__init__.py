"""An engine that makes tokens on a timing model: for demos, load tests and the simulator."""
