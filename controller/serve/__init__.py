"""What node proxies and agents talk to: resources by delta ADS, certificates, capture reports."""
