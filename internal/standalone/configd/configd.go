// Package configd is standalone's config process: it reads the configuration file once,
// as root, and answers what Dovecot's config service would (package dovecot/config,
// clause P2). After a reload the master starts another one; this one goes on for the
// processes that hang on it, until it is stopped.
package configd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"dovetail/internal/conf"
	"dovetail/internal/conf/settings/all"
	"dovetail/internal/dovecot/config"
	"dovetail/internal/process/event"

	"github.com/hashicorp/hcl/v2"
)

const (
	writeTimeout = 10 * time.Second // for a client to take an answer
	maxCached    = 256              // module lists of different requests that are remembered
)

// A Server answers for one configuration. Any number of connections may be served at a
// time.
type Server struct {
	cfg *conf.Config
	log *event.Log

	mu      sync.Mutex
	modules map[string]*all.Selection // guarded by mu: by the names of modules
}

// New returns a server for cfg, which must have been loaded with Expand and without
// errors.
func New(cfg *conf.Config, log *event.Log) *Server {
	return &Server{cfg: cfg, log: log, modules: map[string]*all.Selection{}}
}

// Serve answers on conn until the client closes it, does what the protocol does not
// allow, or ctx is done. It takes conn.
func (s *Server) Serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	br := bufio.NewReaderSize(conn, config.MaxRequest)
	var out []byte
	for first := true; ; first = false {
		line, err := br.ReadSlice('\n')
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				s.log.Error("config client sent a line of more than %d bytes", config.MaxRequest)
			}
			return // a client that ends with an answer unread resets the connection
		}
		cmd, req, err := config.ParseLine(string(line[:len(line)-1]), first)
		if err != nil {
			s.log.Error("config client: %v", err)
			return
		}
		switch out = out[:0]; cmd {
		case config.Ask:
			if out, err = s.Answer(out, req); err != nil {
				// Dovecot, too, closes without an answer (clause P2.12).
				s.log.Error("config: %v", err)
				return
			}
		case config.Filters:
			out = s.filters(out)
		default:
			continue
		}
		if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return
		}
		if _, err := conn.Write(out); err != nil {
			if ctx.Err() == nil {
				s.log.Error("writing to config client: %v", err)
			}
			return
		}
		if cap(out) > 256<<10 {
			out = nil // certificates are large, and connections live long
		}
	}
}

// Answer adds the answer to r to b. The error is a *conf.ConflictError.
func (s *Server) Answer(b []byte, r config.Request) ([]byte, error) {
	v, err := s.cfg.View(conf.Filter{Service: r.Service, LocalIP: r.LocalIP, RemoteIP: r.RemoteIP, LocalName: r.LocalName})
	if err != nil {
		return b, err
	}
	sel := s.selection(r)
	wanted := func(name string) bool {
		return (sel.Has(name) || strings.HasPrefix(name, conf.OwnPrefix)) && !slices.Contains(r.Exclude, name)
	}
	a := config.Answer{
		ServiceUsesLocal: v.UsesLocal, ServiceUsesRemote: v.UsesRemote,
		UsedLocal: v.UsedLocal, UsedRemote: v.UsedRemote,
	}
	if r.Service == "" {
		a.Services = v.OtherServices(wanted)
	}
	b = a.AppendHeader(b)
	schema := s.cfg.Schema()
	for _, name := range schema.Settings("") {
		if wanted(name) {
			if set, ok := v.Root().Get(name); ok {
				b = config.AppendPair(b, name, set.Value)
			}
		}
	}
	for _, typ := range schema.Sections("") {
		if wanted(typ) {
			b = s.sections(b, "", typ, v.Sections(typ), r.Exclude)
			if typ == "plugin" {
				b = own(b, v)
			}
		}
	}
	return append(b, '\n'), nil
}

// selection is the settings of r's modules; nil is everything.
func (s *Server) selection(r config.Request) *all.Selection {
	if len(r.Modules) == 0 {
		return nil
	}
	key := strings.Join(r.Modules, "\t")
	s.mu.Lock()
	defer s.mu.Unlock()
	sel := s.modules[key]
	if sel == nil {
		if sel = s.cfg.Schema().Select(r.Modules...); len(s.modules) < maxCached {
			s.modules[key] = sel
		}
	}
	return sel
}

// sections adds blocks of one type in the form of doveconf -S: the list of their names,
// then the settings of each under its path.
//
//	passdb=0 1
//	passdb/0/driver=static
//	plugin=
//	plugin/quota=none
//
// exclude are names of settings, wherever they stand.
func (s *Server) sections(b []byte, prefix, typ string, blocks []*conf.Block, exclude []string) []byte {
	if len(blocks) == 0 {
		return b
	}
	ids := make([]string, len(blocks))
	for i, c := range blocks {
		switch c.Kind {
		case conf.List:
			ids[i] = strconv.Itoa(i)
		case conf.Unique:
			ids[i] = conf.Escape(c.ID)
		}
	}
	path := prefix + typ
	b = config.AppendPair(b, path, strings.Join(ids, " "))
	for i, c := range blocks {
		in := path + "/"
		if c.Kind != conf.Map {
			in += ids[i] + "/"
		}
		sec, _ := s.cfg.Schema().Section(c.Path())
		if c.Kind == conf.Unique || c.Kind == conf.List && c.Name != "" {
			b = config.AppendPair(b, in+sec.Key, c.Name)
		}
		for _, set := range c.Settings {
			if c.Kind == conf.Map || set.Key != sec.Key && !slices.Contains(exclude, set.Key) {
				b = config.AppendPair(b, in+set.Key, set.Value)
			}
		}
		for _, inner := range s.cfg.Schema().Sections(c.Path()) {
			b = s.sections(b, in, inner, c.Of(inner), exclude)
		}
	}
	return b
}

// own adds our settings at the root as if they stood in plugin { }, where the programs
// look for them, unless they do.
func own(b []byte, v *conf.View) []byte {
	for _, o := range conf.Own {
		if _, inPlugin := v.Get("plugin/" + o.Name); inPlugin {
			continue
		}
		if set, ok := v.Root().Get(o.Name); ok {
			b = config.AppendPair(b, "plugin/"+o.Name, set.Value)
		}
	}
	return b
}

// filters is the reply to FILTERS, general ones first (clause P2.11).
func (s *Server) filters(b []byte) []byte {
	b = config.AppendFilter(b, config.FilterLine{})
	for _, f := range s.cfg.Sorted() {
		var line config.FilterLine
		if f.Match.Protocol != nil {
			line.Service = *f.Match.Protocol
		}
		if f.Match.LocalName != nil {
			line.LocalName = *f.Match.LocalName
		}
		line.LocalNet, line.RemoteNet = prefix(f.Match.Local), prefix(f.Match.Remote)
		b = config.AppendFilter(b, line)
	}
	return append(b, '\n')
}

func prefix(n conf.Net) netip.Prefix {
	if n.Bits == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(n.Addr, n.Bits)
}

// Load reads the configuration for a Server. The error is one line with the first message
// and the number of the others: `dovetail run` and `dovetail check` show all of them before
// any process is started, so that this one happens only if the files changed since.
func Load(path string) (*conf.Config, error) {
	cfg, diags := conf.Load(path, conf.Options{Expand: true, Own: true})
	var first error
	errors := 0
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		if errors++; first == nil {
			first = fmt.Errorf("%s", d.Summary)
			if d.Subject != nil {
				first = fmt.Errorf("%s line %d: %s", d.Subject.Filename, d.Subject.Start.Line, d.Summary)
			}
		}
	}
	if errors > 1 {
		first = fmt.Errorf("%w (and %d more errors)", first, errors-1)
	}
	if first != nil {
		return nil, first
	}
	return cfg, nil
}
