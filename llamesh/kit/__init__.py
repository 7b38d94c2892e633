"""What makes a process a member of the mesh: configuration, errors, identity, serving and drain, storage, logs."""
