"""What people and monitors see of the controller: status of objects, metrics, debug pages."""
