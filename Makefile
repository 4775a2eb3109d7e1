check:
	cargo fmt --check
