"""Probes: each operator that kerasq exports to, alone, with the codes that it must give."""
