"""What this node saw: one log line per connection, counters per edge, flow metrics of the kernel."""
