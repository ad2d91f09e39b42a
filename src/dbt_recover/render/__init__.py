"""What people and programs read: functions that return strings and never print."""
