"""Editing backends: how one kind of MODEL edits.

registry          which editor takes which class of MODEL
base              the interface that nodes call, and what outlives a run
causal_wan        K/V memory in the artist's Wan 2.1
reference         native reference latents, by the recipes of families in recipes/
session           the value on the wire
session_decoder   images of a session
out_of_memory     what to do when the device is full
"""
