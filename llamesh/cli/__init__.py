"""The command `llamesh`."""
