package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"dovetail/internal/dovecot/tabline"
)

func fields(text string) (fs tabline.Fields) {
	for _, w := range strings.Fields(text) {
		k, v, _ := strings.Cut(w, "=")
		fs = append(fs, tabline.Field{Key: k, Value: v})
	}
	return fs
}

// What the passdb says becomes a target, or one of the errors of S9.7.
func TestParse(t *testing.T) {
	show := func(x Target) string {
		return fmt.Sprintf("%v host=%s %s/%s/%s pass=%s %s tls=%d,%d noauth=%v nottrusted=%v %v %v src=%v fwd=%q alt=%v",
			x.Addrs, x.Host, x.User, x.DestUser, x.Master, x.Password, x.Mech, x.TLS, x.StartTLS, x.NoAuth, x.NotTrusted, x.Timeout, x.DownAfter, x.SourceIP, x.Forward, x.Alt)
	}
	plain := func(change string) string {
		s := "[192.0.2.1:587] host=192.0.2.1 u/u/ pass=p PLAIN tls=0,0 noauth=false nottrusted=false 30s 30s src=invalid IP fwd=[] alt=[]"
		for _, c := range strings.Split(change, ";") {
			if old, by, ok := strings.Cut(c, "->"); ok {
				if !strings.Contains(s, old) {
					t.Fatalf("%q is not in %s", old, s)
				}
				s = strings.Replace(s, old, by, 1)
			}
		}
		return s
	}
	for in, want := range map[string]string{
		"host=192.0.2.1 pass=p":                                   plain(""),
		"host=192.0.2.1 pass=p proxy nologin reason=x unknown=y":  plain(""),
		"host=192.0.2.1 pass=p port=25":                           plain(":587->:25"),
		"host=192.0.2.1 pass=p ssl=yes":                           plain(":587->:465;tls=0,0->tls=2,0"),
		"host=192.0.2.1 pass=p ssl=any-cert port=25":              plain(":587->:25;tls=0,0->tls=1,0"),
		"host=192.0.2.1 pass=p port=25 ssl":                       plain(":587->:25;tls=0,0->tls=2,0"),
		"host=192.0.2.1 pass=p starttls=yes":                      plain("tls=0,0->tls=0,2"),
		"host=192.0.2.1 pass=p starttls=any-cert":                 plain("tls=0,0->tls=0,1"),
		"host=192.0.2.1 pass=p ssl=any-cert starttls=yes port=25": plain(":587->:25;tls=0,0->tls=0,1"),
		"host=mx.test hostip=192.0.2.1 pass=p":                    plain("host=192.0.2.1->host=mx.test"),
		"host=mx.test hostip=2001:db8::1 pass=p":                  plain("[192.0.2.1:587]->[[2001:db8::1]:587];host=192.0.2.1->host=mx.test"),
		"host=192.0.2.1 hostip= pass=p":                           plain(""),
		"host=mx.test hostip=192.0.2.1 dovetail_hostips=192.0.2.2,2001:db8::1,192.0.2.1 pass=p port=9": plain(
			"[192.0.2.1:587]->[192.0.2.1:9 192.0.2.2:9 [2001:db8::1]:9];host=192.0.2.1->host=mx.test"),
		"host=192.0.2.1 pass=p destuser=d master=m":                   plain("u/u/->u/d/m"),
		"host=192.0.2.1 pass=p master=":                               plain(""),
		"host=192.0.2.1 pass=p proxy_mech=scram-sha-1":                plain("PLAIN->SCRAM-SHA-1"),
		"host=192.0.2.1 pass=p proxy_noauth proxy_not_trusted":        plain("noauth=false->noauth=true;nottrusted=false->nottrusted=true"),
		"host=192.0.2.1 proxy_noauth proxy_mech=X":                    plain("pass=p->pass=;PLAIN->X;noauth=false->noauth=true"),
		"host=192.0.2.1 pass=p proxy_timeout=5":                       plain("30s 30s->5s 30s"),
		"host=192.0.2.1 pass=p proxy_timeout=1500ms":                  plain("30s 30s->1.5s 30s"),
		"host=192.0.2.1 pass=p proxy_timeout=2mins":                   plain("30s 30s->2m0s 30s"),
		"host=192.0.2.1 pass=p proxy_timeout=0":                       "Invalid proxy_timeout",
		"host=192.0.2.1 pass=p proxy_timeout=soon":                    "Invalid proxy_timeout",
		"host=192.0.2.1 pass=p proxy_timeout=99999999999":             "Invalid proxy_timeout",
		"host=192.0.2.1 pass=p proxy_host_immediate_failure_after=5s": plain("30s 30s->30s 5s"),
		"host=192.0.2.1 pass=p proxy_host_immediate_failure_after=0":  plain("30s 30s->30s 0s"),
		"host=192.0.2.1 pass=p source_ip=192.0.2.9":                   plain("src=invalid IP->src=192.0.2.9"),
		"host=192.0.2.1 pass=p source_ip=here":                        "Invalid source_ip",
		"host=192.0.2.1 pass=p forward_a=b FORWARD_c=d=e forward_":    plain(`fwd=[]->fwd=["a=b" "c=d=e"]`),
		"host=192.0.2.1 pass=p user_a=b":                              plain("alt=[]->alt=[{user_a b false}]"),
		"host=192.0.2.1 pass=":                                        plain("pass=p->pass="),
		"host=192.0.2.1":                                              "password not given",
		"pass=p":                                                      "host not given",
		"host= pass=p":                                                "host not given",
		"host=mx.test pass=p":                                         "host is not an IP address, and hostip is not given",
		"host=mx.test hostip=x pass=p":                                "host is not an IP address, and hostip is not given",
		"host=192.0.2.1 pass=p dovetail_hostips=x":                    "Invalid dovetail_hostips",
		"host=192.0.2.1 pass=p port=0":                                "Invalid port",
		"host=192.0.2.1 pass=p port=65536":                            "Invalid port",
		"host=192.0.2.1 pass=p port=x proxy_timeout=5":                "Invalid port",
		"host=192.0.2.1 pass=p proxy_mech=NTLM":                       "Unsupported SASL mechanism NTLM",
	} {
		x, err := Parse(fields(in), "u", 30*time.Second)
		got := show(x)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s:\n     %s\nwant %s", in, got, want)
		}
	}
}

// Not more than some addresses are kept of a host.
func TestParseManyAddresses(t *testing.T) {
	var list []string
	for i := range 100 {
		list = append(list, fmt.Sprintf("192.0.2.%d", i+1))
	}
	x, err := Parse(fields("host=mx.test hostip=192.0.2.1 pass=p dovetail_hostips="+strings.Join(list, ",")), "u", time.Second)
	if err != nil || len(x.Addrs) != maxAddrs {
		t.Errorf("%d addresses, %v", len(x.Addrs), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("host=192.0.2.1 pass=p port=25 ssl=yes starttls")
	f.Add("host=mx.test hostip=::1 dovetail_hostips=1.2.3.4 pass= proxy_timeout=5secs source_ip=1.2.3.4 forward_x=y user_z=z")
	f.Add("host=1 pass=p proxy_mech=plain master= destuser= proxy_noauth=")
	f.Fuzz(func(t *testing.T, text string) {
		x, err := Parse(fields(text), "u", time.Second)
		if err != nil {
			return
		}
		if len(x.Addrs) == 0 || len(x.Addrs) > maxAddrs || x.Timeout <= 0 || x.TLS != NoTLS && x.StartTLS != NoTLS {
			t.Errorf("%+v", x)
		}
		for _, a := range x.Addrs {
			if !a.IsValid() || a.Port() == 0 || a.Addr().Is4In6() || a.Addr().Zone() != "" {
				t.Errorf("address %v", a)
			}
		}
	})
}
