"""eBPF programs that steer pods' TCP, their loader, and the plane of pinned maps and links."""
