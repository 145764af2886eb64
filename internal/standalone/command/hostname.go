package command

import (
	"context"
	"net"
	"os"
	"strings"
	"time"
)

const fqdnTimeout = 5 * time.Second

// hostNames returns the machine's name and its full name, as children are told.
func hostNames() (name, full string) {
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "unknown"
	}
	hosts, _ := os.ReadFile("/etc/hosts")
	if full = canonical(string(hosts), name); full != "" {
		return name, full
	}
	if strings.Contains(name, ".") {
		return name, name
	}
	ctx, cancel := context.WithTimeout(context.Background(), fqdnTimeout)
	defer cancel()
	if cname, err := net.DefaultResolver.LookupCNAME(ctx, name); err == nil && strings.Contains(cname, ".") {
		if full = strings.TrimSuffix(cname, "."); full != "" {
			return name, full
		}
	}
	return name, name
}

// canonical returns the first name on the line of hosts that has name.
func canonical(hosts, name string) string {
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		for i := 1; i < len(f); i++ {
			if strings.EqualFold(f[i], name) {
				return f[1]
			}
		}
	}
	return ""
}
