"""Campaigns: one mail to every verified user, each exactly once."""
