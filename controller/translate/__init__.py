"""Objects to the resources that node proxies get: pure functions, no state, no I/O."""
