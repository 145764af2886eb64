package conf

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// A Service is one service block merged with the built-in one of the same name, and with
// the defaults that Dovecot's master would put in for zero values (clause C19.1).
type Service struct {
	Name, Protocol, Type string
	Executable           string // with its arguments; relative to libexec_dir
	// User and Group: $default_... are replaced. Empty means root, and the user's group.
	User, Group, PrivilegedGroup string
	ExtraGroups                  []string
	Chroot                       string // relative to base_dir
	DropPrivBeforeExec           bool
	ProcessMinAvail              uint32
	ProcessLimit                 uint32        // default_process_limit if not set
	ClientLimit                  uint32        // default_client_limit if not set; at most ServiceCount if that is set
	ServiceCount                 uint32        // 0: unlimited
	IdleKill                     time.Duration // default_idle_kill if not set; Never
	VSZLimit                     uint64        // octets, default_vsz_limit if not set; 0: unlimited
	Unix, FIFO                   []SocketListener
	Inet                         []InetListener
	Range                        hcl.Range // of its head; zero if only built in

	block *Block
}

// Never is the IdleKill of a service whose idle processes stay.
const Never time.Duration = math.MaxInt64

// A SocketListener is a unix_listener or fifo_listener.
type SocketListener struct {
	Path        string // relative to base_dir
	Mode        uint32 // 0: there is no such listener
	User, Group string // as in Service
	Range       hcl.Range
}

// An InetListener is an inet_listener.
type InetListener struct {
	Name      string
	Address   []string // as written, split; `listen` if not set
	Port      uint16   // 0: there is no such listener
	SSL       bool
	ReusePort bool
	HAProxy   bool
	Range     hcl.Range
}

// At is where the value of key stands in the service's block; the zero Range if it is not
// set.
func (s Service) At(key string) hcl.Range {
	if s.block != nil {
		if set, ok := s.block.Get(key); ok && set.Last != nil {
			return set.Last.Range.Range
		}
	}
	return hcl.Range{}
}

// Services returns all services: the built-in ones in Dovecot's order (clause C19.3),
// then those that only the files have.
func (v *View) Services() []Service {
	blocks := v.serviceBlocks()
	out := make([]Service, len(blocks))
	for i, b := range blocks {
		out[i] = v.service(b)
	}
	return out
}

// serviceBlocks are the service blocks merged with the built-in ones.
func (v *View) serviceBlocks() []*Block {
	files := v.root.Of("service")
	out := make([]*Block, 0, len(files)+32)
	done := map[string]bool{}
	for _, b := range v.cfg.schema.Services() {
		out = append(out, b)
		if own := v.root.Block("service", b.ID); own != nil {
			out[len(out)-1] = own.over(b)
		}
		done[b.ID] = true
	}
	for _, b := range files {
		if !done[b.ID] {
			out = append(out, b)
		}
	}
	return out
}

// over returns b with what only the built-in block has. Listeners are in the order of the
// built-in block, then in that of b.
func (b *Block) over(builtin *Block) *Block {
	c := b.clone()
	c.merge(builtin, false)
	place := func(x *Block) int {
		if i := slices.IndexFunc(builtin.Blocks, func(y *Block) bool { return x.Type == y.Type && x.ID == y.ID }); i >= 0 {
			return i
		}
		return len(builtin.Blocks)
	}
	slices.SortStableFunc(c.Blocks, func(x, y *Block) int { return place(x) - place(y) })
	return c
}

// reader reads the settings of one block with their defaults.
type reader struct {
	v *View
	b *Block
}

func (r reader) str(key string) string {
	s, ok := r.b.Get(key)
	if !ok {
		k, _ := r.v.cfg.schema.Setting(join(r.b.path, key))
		return k.Default
	}
	return s.Value
}

// name resolves $default_internal_user and its like, when they are the whole value
// (clause C6.9).
func (r reader) name(key string) string { return r.v.resolveName(r.str(key)) }

func (v *View) resolveName(s string) string {
	if strings.HasPrefix(s, "$default_") {
		return v.Value(s[1:])
	}
	return s
}

func (r reader) bool(key string) bool { return r.str(key) == "yes" }

func (r reader) uint(key string) uint32 {
	n, _ := strconv.ParseUint(r.str(key), 10, 32)
	return uint32(n)
}

// uintOr is uint, or the root setting def if it is 0.
func (r reader) uintOr(key, def string) uint32 {
	n := r.uint(key)
	if n == 0 {
		d, _ := strconv.ParseUint(r.v.Value(def), 10, 32)
		n = uint32(d)
	}
	return n
}

func (v *View) service(b *Block) Service {
	r := reader{v, b}
	s := Service{
		Name: b.Name, Protocol: r.str("protocol"), Type: r.str("type"), Executable: r.str("executable"),
		User: r.name("user"), Group: r.name("group"), PrivilegedGroup: r.name("privileged_group"),
		Chroot: r.str("chroot"), DropPrivBeforeExec: r.bool("drop_priv_before_exec"),
		ProcessMinAvail: r.uint("process_min_avail"),
		ProcessLimit:    r.uintOr("process_limit", "default_process_limit"),
		ClientLimit:     r.uintOr("client_limit", "default_client_limit"),
		ServiceCount:    r.uint("service_count"),
		block:           b,
	}
	if len(b.Open) > 0 {
		s.Range = b.Open[0].Range
	}
	if s.ServiceCount > 0 {
		s.ClientLimit = min(s.ClientLimit, s.ServiceCount)
	}
	for _, g := range strings.Split(r.str("extra_groups"), ",") {
		if g != "" {
			s.ExtraGroups = append(s.ExtraGroups, v.resolveName(g))
		}
	}
	switch t := parseSecs(r.str("idle_kill")); t {
	case 0:
		s.IdleKill = time.Duration(parseSecs(v.Value("default_idle_kill"))) * time.Second
	case math.MaxUint32:
		s.IdleKill = Never
	default:
		s.IdleKill = time.Duration(t) * time.Second
	}
	if s.VSZLimit = parseSize(r.str("vsz_limit")); s.VSZLimit == math.MaxUint64 {
		s.VSZLimit = parseSize(v.Value("default_vsz_limit"))
	}
	for _, c := range b.Blocks {
		switch c.Type {
		case "unix_listener":
			s.Unix = append(s.Unix, v.socket(c))
		case "fifo_listener":
			s.FIFO = append(s.FIFO, v.socket(c))
		case "inet_listener":
			s.Inet = append(s.Inet, v.inet(c))
		}
	}
	return s
}

func (v *View) socket(b *Block) SocketListener {
	r := reader{v, b}
	mode, _ := strconv.ParseUint(r.str("mode"), 8, 32)
	return SocketListener{Path: b.Name, Mode: uint32(mode), User: r.name("user"), Group: r.name("group"), Range: b.Pos().Range}
}

func (v *View) inet(b *Block) InetListener {
	r := reader{v, b}
	port, _ := strconv.ParseUint(r.str("port"), 10, 16)
	l := InetListener{
		Name: b.Name, Port: uint16(port), Address: words(r.str("address")), SSL: r.bool("ssl"),
		ReusePort: r.bool("reuse_port"), HAProxy: r.bool("haproxy"), Range: b.Pos().Range,
	}
	if len(l.Address) == 0 {
		l.Address = words(v.Value("listen"))
	}
	return l
}

// Protocols returns the words of `protocols`.
func (v *View) Protocols() []string {
	list := split(v.Value("protocols"), " ")
	if len(list) == 1 && list[0] == "none" {
		return nil
	}
	return list
}

// Enabled says whether the service runs: it has no protocol, or one of `protocols`.
func (v *View) Enabled(s Service) bool {
	return s.Protocol == "" || slices.Contains(v.Protocols(), s.Protocol)
}

// parseSecs reads the printed form of a time (clause C11.7).
func parseSecs(s string) uint64 {
	num, unit, _ := strings.Cut(s, " ")
	n, _ := strconv.ParseUint(num, 10, 64)
	switch unit {
	case "mins":
		n *= 60
	case "hours":
		n *= 3600
	case "days":
		n *= 24 * 3600
	case "weeks":
		n *= 7 * 24 * 3600
	}
	return n
}

// parseSize reads the printed form of a size (clause C11.4).
func parseSize(s string) uint64 {
	num, unit, _ := strings.Cut(s, " ")
	n, _ := strconv.ParseUint(num, 10, 64)
	switch unit {
	case "k":
		n <<= 10
	case "M":
		n <<= 20
	case "G":
		n <<= 30
	case "T":
		n <<= 40
	}
	return n
}
