"""What runs in the field: the store of releases, the installer, the agent. Imports with numpy alone."""
