"""A small SaaS back end that shows every feature of Knapsaq once."""
