"""Detectors of what a text must not hold: identifiers of people, insults; and how good each detector is."""
