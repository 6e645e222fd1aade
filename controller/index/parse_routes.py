"""Documents of the Gateway API to objects: what they attach to and lead to. Requests are a waypoint's matter."""

from controller.index.fields import Field
from controller.index.objects import Gateway, Kind, Listener, Reference, Route


def gateway(field: Field) -> Gateway:
    """Read a Gateway; raises ObjectFault."""
    metadata, spec = field["metadata"], field["spec"]
    return Gateway(
        namespace=metadata["namespace"].text("default"),
        name=metadata["name"].required_text(),
        class_name=spec["gatewayClassName"].required_text(),
        labels=metadata["labels"].labels(),
        listeners=tuple(
            Listener(item["name"].required_text(), item["port"].port(), item["protocol"].required_text())
            for item in spec["listeners"].items()
        ),
    )


def route(kind: Kind, field: Field) -> Route:
    """Read a route of any kind; raises ObjectFault."""
    metadata, spec = field["metadata"], field["spec"]
    namespace = metadata["namespace"].text("default")
    backends = (item for rule in spec["rules"].items() for item in rule["backendRefs"].items())
    return Route(
        kind=kind,
        namespace=namespace,
        name=metadata["name"].required_text(),
        parents=tuple(_reference(item, namespace, "Gateway") for item in spec["parentRefs"].items()),
        hostnames=spec["hostnames"].texts(),
        backends=tuple(dict.fromkeys(_reference(item, namespace, "Service") for item in backends)),
    )


def _reference(field: Field, namespace: str, kind: str) -> Reference:
    return Reference(
        kind=field["kind"].text(kind),
        namespace=field["namespace"].text(namespace),
        name=field["name"].required_text(),
        port=field["port"].port() if field["port"].is_set else 0,
        section=field["sectionName"].text(),
    )
