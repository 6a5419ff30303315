"""What operators declare: read from a located tree, checked as a whole, kept as canonical JSON.

Owns the meaning of catalogue files. Does not read YAML (services do) and does not store anything. A catalogue is right
or refused as a whole, with every fault named by line, field, bound and remedy.
"""
