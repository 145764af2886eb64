package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"dovetail/internal/conf"
	"dovetail/internal/dovecot/tabline"
	"dovetail/internal/standalone/master"
)

const (
	askTimeout  = 15 * time.Second
	stopTimeout = 60 * time.Second // for the master to end
	stopPoll    = 50 * time.Millisecond
	maxAnswer   = 16 << 20 // bytes of an answer
)

// baseDir is where the master of the configuration keeps its files. Of the configuration
// nothing else is looked at, so that it may be broken.
func (c *call) baseDir() (string, error) {
	if _, err := os.Stat(c.config); err != nil {
		return "", fmt.Errorf("%s: %s", c.config, master.Reason(err))
	}
	cfg, _ := conf.Load(c.config, conf.Options{Expand: true, NoChecks: true})
	v, err := cfg.View(conf.Filter{})
	if err != nil {
		return "", err
	}
	return dir(v.Value("base_dir")), nil
}

// A client is a connection to the master's socket.
type client struct {
	conn net.Conn
	br   *bufio.Reader
}

//lint:ignore ST1005 it begins with a name
var errNotRunning = errors.New("Dovetail is not running")

// askMaster connects to the master in baseDir.
func askMaster(baseDir string) (*client, error) {
	return dial(filepath.Join(baseDir, master.AdminSocket), "VERSION\tmaster-client\t1\t0\n")
}

// dial connects to a socket and sends a greeting.
func dial(path, greeting string) (*client, error) {
	conn, err := net.DialTimeout("unix", path, askTimeout)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w (nobody listens at %s)", errNotRunning, path)
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %s", path, master.Reason(err))
	}
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return nil, err
	}
	c := &client{conn, bufio.NewReader(io.LimitReader(conn, maxAnswer))}
	if _, err := io.WriteString(conn, greeting); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *client) close() { c.conn.Close() }

// greeting reads the master's first line.
func (c *client) greeting() error {
	line, err := c.line()
	if err == nil && !strings.HasPrefix(line, "VERSION\tmaster-server\t1\t") {
		err = fmt.Errorf("unknown greeting %q", line)
	}
	return err
}

func (c *client) line() (string, error) {
	line, err := c.br.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("no answer: %w", err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// send sends a command.
func (c *client) send(words ...string) error {
	for i := range words {
		words[i] = tabline.Escape(words[i])
	}
	_, err := io.WriteString(c.conn, strings.Join(words, "\t")+"\n")
	return err
}

// table sends a command and reads lines up to an empty one.
func (c *client) table(words ...string) ([][]string, error) {
	if err := c.send(words...); err != nil {
		return nil, err
	}
	var rows [][]string
	for {
		line, err := c.line()
		if err != nil {
			return nil, err
		}
		if line == "" {
			return rows, nil
		}
		rows = append(rows, tabline.Split(line))
	}
}

// runReload is `dovetail reload`. A configuration with errors is refused here, where they
// can be shown; the master would find them, too.
func runReload(c *call) int {
	if _, err := c.parse(0); err != nil {
		return usage(err)
	}
	sys, err := thisSystem()
	if err != nil {
		c.error("%v", err)
		return exitFatal
	}
	setup, diags := sys.Load(c.config)
	if err := conf.Write(c.stderr, setup.conf(), diags); err != nil || diags.HasErrors() {
		return exitFatal
	}
	base, err := c.baseDir()
	if err == nil {
		var m *client
		if m, err = askMaster(base); err == nil {
			defer m.close()
			if err = m.greeting(); err == nil {
				if err = m.send("RELOAD"); err == nil {
					var answer string
					if answer, err = m.line(); err == nil && answer != "+" {
						err = errors.New(strings.TrimPrefix(answer, "-"))
					}
				}
			}
		}
	}
	if err != nil {
		c.error("%v", err)
		return exitFailed
	}
	return exitOK
}

// runStop is `dovetail stop`. It returns when the master has ended.
func runStop(c *call) int {
	if _, err := c.parse(0); err != nil {
		return usage(err)
	}
	base, err := c.baseDir()
	if err != nil {
		c.error("%v", err)
		return exitFailed
	}
	pid, err := master.ReadPIDFile(base)
	if err == nil && pid == 0 {
		err = errNotRunning
	}
	if err == nil {
		err = unix.Kill(pid, unix.SIGTERM)
	}
	if err != nil {
		c.error("%v", err)
		return exitFailed
	}
	for end := time.Now().Add(stopTimeout); time.Now().Before(end); time.Sleep(stopPoll) {
		if unix.Kill(pid, 0) == unix.ESRCH {
			return exitOK
		}
		if now, _ := master.ReadPIDFile(base); now != pid {
			return exitOK
		}
	}
	c.error("process %d does not end", pid)
	return exitFailed
}

// runStatus is `dovetail status`: exit status 0 if the server runs, else 3.
func runStatus(c *call) int {
	if _, err := c.parse(0); err != nil {
		return usage(err)
	}
	if err := c.status(); err != nil {
		c.error("%v", err)
		if errors.Is(err, errNotRunning) {
			return exitNotRunning
		}
		return exitFailed
	}
	return exitOK
}

func (c *call) status() error {
	base, err := c.baseDir()
	if err != nil {
		return err
	}
	m, err := askMaster(base)
	if err != nil {
		return err
	}
	defer m.close()
	if err := m.greeting(); err != nil {
		return err
	}
	own, err := m.table("DOVETAIL-STATUS")
	if err != nil {
		return err
	}
	services, err := m.table("SERVICE-STATUS")
	if err != nil {
		return err
	}
	processes, err := m.table("PROCESS-STATUS")
	if err != nil {
		return err
	}
	facts := map[string]string{}
	for _, row := range own {
		if len(row) == 2 {
			facts[row[0]] = row[1]
		}
	}
	started := unixTime(facts["started"])
	c.say("Dovetail %s, process %s, running since %s (%s), configuration %s", facts["version"], facts["pid"],
		started.Format(time.DateTime), time.Since(started).Round(time.Second), facts["config"])
	if n := facts["old-processes"]; n != "0" {
		c.say("%s processes from before a reload are still serving their clients", n)
	}
	c.say("")
	tw := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "SERVICE\tPROCESSES\tFREE\tLIMIT\tCLIENTS EACH\tSTARTED\tSTATE")
	for _, s := range services {
		if len(s) >= 13 {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s[0], s[1], s[2], s[3], s[4], s[12], serviceState(s))
		}
	}
	fmt.Fprintln(tw, "\t\t\t\t\t\t\nPROCESS\tSERVICE\tFREE\tSERVED\tIDLE\t\t")
	for _, p := range processes {
		if len(p) < 7 {
			continue
		}
		idle := "-"
		if t := unixTime(p[4]); !t.IsZero() {
			idle = time.Since(t).Round(time.Second).String()
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t\t\n", p[1], p[0], p[2], p[3], idle)
	}
	return tw.Flush()
}

// serviceState is the state of a line of SERVICE-STATUS in a word or two.
func serviceState(s []string) string {
	switch {
	case s[11] == "y":
		return "stopped"
	case s[5] != "0":
		return "throttled (it fails when started; the log says why)"
	case s[9] == "y":
		return "full, clients are being dropped"
	case s[1] == "0":
		return "waits for clients"
	}
	return "ok"
}

func unixTime(text string) time.Time {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n == 0 {
		return time.Time{}
	}
	return time.Unix(n, 0)
}
