"""Thin entry points over ``dakter``: the only place that knows Ray."""
