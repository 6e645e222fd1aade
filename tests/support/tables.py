"""The engine's tables as tests fill them, straight over its border."""

from typing import Any, Self

from mesh.addresses import to_bytes16
from tests.support.border import ffi, lib


class Tables:
    """Tables under construction; `take` gives them away."""

    def __init__(self) -> None:
        self._raw = lib.cv_tables_create()
        self._keep: list[Any] = []

    def _text(self, text: str) -> Any:
        made = ffi.new("char[]", text.encode())
        self._keep.append(made)
        return made

    def _new(self, type_: str, value: Any) -> Any:
        made = ffi.new(type_, value)
        self._keep.append(made)
        return made

    def workload(
        self,
        number: int,
        uid: str,
        identity: str,
        *ips: str,
        hbone: bool = True,
        foreign: bool = False,
        policies: tuple[int, ...] = (),
        baggage: str = "k8s.namespace.name=default",
    ) -> Self:
        raw = ffi.new("struct cv_workload *")
        raw.number = number
        raw.uid = self._text(uid)
        raw.identity = self._text(identity)
        raw.namespace_ = self._text("default")
        raw.baggage = self._text(baggage)
        raw.network = self._text("")
        raw.hbone = hbone
        raw.foreign = foreign
        raw.addresses = self._new("uint8_t[][16]", [list(to_bytes16(ip)) for ip in ips])
        raw.address_count = len(ips)
        raw.policies = self._new("uint32_t[]", list(policies))
        raw.policy_count = len(policies)
        assert not lib.cv_tables_put_workload(self._raw, raw)
        return self

    def service(
        self, number: int, vip: str, port: int, *endpoints: tuple[int, int], names: tuple[str, ...] = ()
    ) -> Self:
        """Endpoints are (workload number, target port)."""
        raw = ffi.new("struct cv_service *")
        raw.number = number
        raw.hostname = self._text(f"s{number}.default.svc.cluster.local")
        raw.namespace_ = self._text("default")
        vips = self._new("struct cv_prefix[]", 1)
        ffi.memmove(vips[0].ip, to_bytes16(vip), 16)
        vips[0].length = 128
        raw.vips, raw.vip_count = vips, 1
        raw.endpoints = self._new(
            "struct cv_service_endpoint[]",
            [
                {"workload": workload, "service_port": port, "target_port": target, "weight": 1}
                for workload, target in endpoints
            ],
        )
        raw.endpoint_count = len(endpoints)
        raw.ports, raw.port_count = self._new("uint16_t[]", [port]), 1
        raw.subject_names = self._new("char *[]", [self._text(name) for name in names])
        raw.subject_name_count = len(names)
        assert not lib.cv_tables_put_service(self._raw, raw)
        return self

    def policy(self, number: int, program: bytes, deny: bool = False) -> Self:
        raw = ffi.new("struct cv_policy *")
        raw.number = number
        raw.name = self._text(f"default/p{number}")
        raw.deny = deny
        raw.program = self._new("uint8_t[]", program)
        raw.program_length = len(program)
        assert not lib.cv_tables_put_policy(self._raw, raw)
        return self

    def take(self) -> Any:
        raw, self._raw = self._raw, None
        return raw
