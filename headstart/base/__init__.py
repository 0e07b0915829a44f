"""What everything stands on: errors, parameters, paths and files, the device, the identity of results."""
