package command

import (
	"context"
	"os"

	"dovetail/internal/process/service"
	"dovetail/internal/standalone/anvild"
	"dovetail/internal/standalone/authd"
	"dovetail/internal/standalone/configd"
	"dovetail/internal/standalone/dnsd"
	"dovetail/internal/standalone/ipcd"
	"dovetail/internal/standalone/logd"
)

// runRole is `dovetail role NAME`: a process that the master starts.
func runRole(c *call, args []string) int {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	os.Args = append(os.Args[:1:1], args[min(1, len(args)):]...) // package service reads the options
	switch name {
	case "log":
		return logd.Main()
	case "auth":
		service.Main(authd.Program())
	case "dns-client":
		service.Main(dnsd.Program())
	case "ipc":
		service.Main(ipcd.Program())
	case "config":
		service.Main(configProgram())
	case "anvil":
		service.Main(anvild.Program())
	}
	c.error("role: there is no %q", name)
	return exitUsage
}

// configProgram is the config process: it reads the configuration once. It stays root, as
// the files may be root's; all it takes from others is one line at a time.
func configProgram() service.Program {
	var srv *configd.Server
	return service.Program{
		Name: "config", About: "it answers questions about the configuration",
		Setup: func(p *service.Process) error {
			cfg, err := configd.Load(p.Env.ConfigFile)
			if err != nil {
				return err
			}
			srv = configd.New(cfg, p.Log)
			return nil
		},
		Serve: func(ctx context.Context, c *service.Client) { srv.Serve(ctx, c.Conn) },
	}
}
