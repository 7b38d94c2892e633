"""The parts that make a process a member of the mesh: configuration, errors, identity, serving and drain, storage, logs."""
