# The doors of Dovetail. `make help` says what each is for.

GO       ?= go
PROGRAMS := submission-login submission doveconf-lite dovetail
VERSION  := $(shell cat VERSION)
FUZZTIME ?= 10s
DESTDIR  ?=
PREFIX   ?= /usr/local

# Two programs are started by a master that may limit their address space: where package
# process/entry has assembly, the first code they run sees to that.
stub = $$($(GO) list -deps -f '{{if eq .ImportPath "dovetail/internal/process/entry"}}{{if .SFiles}}-E dovetail_entry{{end}}{{end}}' ./cmd/$$p)

help: ## show this
	@sed -n 's/^\([a-z][a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo "Variables: GO=$(GO) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) FUZZTIME=$(FUZZTIME); GOARCH as for go build"

# A copy lies in larger pieces in the page cache than what the linker has written: a process
# starts in four fifths of the time.
build: ## the programs, static, into bin/
	@mkdir -p bin/linked
	@for p in $(PROGRAMS); do echo "bin/$$p"; CGO_ENABLED=0 $(GO) build -trimpath \
		-ldflags "-s -w -X dovetail/internal/standalone/command.Version=$(VERSION) $(stub)" -o bin/linked/$$p ./cmd/$$p && \
		install -m 755 bin/linked/$$p bin/$$p || exit 1; \
	done

run: build ## a server to try things with: no root, no Dovecot, no configuration
	@bin/dovetail demo

demo: build ## one message through that server, shown as the relay got it
	@bin/dovetail demo -once

# What failed is told in full, what was skipped is counted by its reasons.
report = mkdir -p bin/tools && $(GO) build -o bin/tools/report ./tests/report

test: ## all tests, with what they need (as root it is installed)
	@sh tests/needs.sh
	@$(report)
	$(GO) test -timeout 40m -json ./... | bin/tools/report

race: ## all tests under the race detector
	@sh tests/needs.sh
	@$(report)
	CGO_ENABLED=1 $(GO) test -race -timeout 80m -json ./... | bin/tools/report

check: ## form: gofmt, vet, staticcheck, who may import whom
	@files=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$files" ]; then echo "not gofmt-clean:"; echo "$$files"; exit 1; fi
	$(GO) vet ./...
	@mkdir -p bin/tools
	$(GO) build -C tools -o ../bin/tools/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/tools/staticcheck ./...
	$(GO) test -count=1 ./tests/rules

interop: ## every pairing with Dovecot's own programs
	@sh tests/needs.sh
	$(GO) test -count=1 -timeout 40m ./tests/interop/... ./tests/transcripts/... ./tests/standalone/...
	$(GO) test -count=1 -timeout 40m ./tests/doveconf -rounds 500

fuzz: ## each fuzz target for FUZZTIME (10s)
	@for dir in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u); do \
		for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$dir/*_test.go | sort -u); do \
			echo "$$dir $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) ./$$dir || exit 1; \
		done; \
	done

bench: ## benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./...

soak: ## long runs: load, faults, leaks (as root)
	@sh tests/needs.sh
	$(GO) test -count=1 -timeout 0 -tags soak $$(git grep -l '^//go:build soak' -- '*.go' | xargs -n1 dirname | sort -u | sed 's|^|./|')

record: ## write the files that tests compare with anew, from the installed Dovecot (as root)
	@sh tests/needs.sh
	@for dir in $$(git grep -l 'flag.Bool("record"' -- '*_test.go' '*.go' | xargs -n1 dirname | sort -u); do \
		echo "$$dir"; $(GO) test -count=1 -timeout 40m ./$$dir -record || exit 1; \
	done

# Examples and the unit name the programs where PREFIX puts them.
share = $(DESTDIR)$(PREFIX)/share
doc   = $(share)/doc/dovetail
place = sed -e 's,/usr/libexec/,$(PREFIX)/libexec/,' -e 's,/usr/sbin/dovetail,$(PREFIX)/sbin/dovetail,'

install: build ## programs, manual pages, documents, examples, systemd unit into DESTDIR PREFIX
	install -d $(DESTDIR)$(PREFIX)/libexec/dovetail $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin
	install -m 755 bin/dovetail bin/submission-login bin/submission $(DESTDIR)$(PREFIX)/libexec/dovetail
	ln -sf ../libexec/dovetail/dovetail $(DESTDIR)$(PREFIX)/sbin/dovetail
	install -m 755 bin/doveconf-lite $(DESTDIR)$(PREFIX)/bin
	install -d $(share)/man/man1 $(share)/man/man8 $(doc)/examples $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d
	install -m 644 packaging/sysusers.d/dovetail.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d
	install -m 644 README.md CHANGELOG.md LICENSE docs/*.md $(doc)
	@put() { echo "$$2/$${1##*/}"; $(place) "$$1" >"$$2/$${1##*/}" && chmod 644 "$$2/$${1##*/}" || exit 1; }; \
	for f in packaging/man/*.1; do put $$f $(share)/man/man1; done; \
	for f in packaging/man/*.8; do put $$f $(share)/man/man8; done; \
	for f in conf.d/*.conf; do put $$f $(doc)/examples; done; \
	put packaging/systemd/dovetail.service $(DESTDIR)$(PREFIX)/lib/systemd/system

package: ## a .deb and an .rpm of what install lays, into bin/
	@rm -rf bin/stage bin/*.deb bin/*.rpm
	@$(MAKE) -s install DESTDIR=bin/stage PREFIX=/usr
	@mkdir -p bin/tools
	env -u GOOS -u GOARCH $(GO) build -C tools -o ../bin/tools/nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm
	@for p in deb rpm; do \
		VERSION=$(VERSION) GOARCH=$$($(GO) env GOARCH) bin/tools/nfpm package -f packaging/nfpm.yaml -p $$p -t bin || exit 1; done
	@! command -v dpkg-deb >/dev/null || dpkg-deb -c bin/dovetail_*.deb

clean: ## remove what was built
	rm -rf bin

.PHONY: help build run demo test race check interop fuzz bench soak record install package clean
