"""Everything that looks at networks, configs and machines from above the tasks: counted, compared, measured."""
