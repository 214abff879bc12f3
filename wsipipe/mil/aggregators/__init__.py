"""The aggregators, one file each. `wsipipe.mil.registry` names them."""
