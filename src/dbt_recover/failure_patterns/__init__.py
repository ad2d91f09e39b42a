"""What a failure's message says of its class, by adapter. Read by diagnose.py; every entry is walked by
tests/test_diagnose.py, in both directions: its sample gets its class by this very entry.

Order of trial: text, code, sqlstate, prefix; within each, the order of a file. They are Python and
not data, for `plan` reads them each time, and parsing them took longer than deciding the plan.
"""
