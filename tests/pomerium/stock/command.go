//go:build embed_pomerium

package stock

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// Main runs the command line of the stock server and returns the exit code: 0 after SIGTERM or SIGINT, 64 for bad
// usage, 1 for any other failure. It prints one line, `listening on HOST:PORT`, on out once clients can connect.
func Main(arguments []string, out, errOut io.Writer) int {
	cfg, level, err := parse(arguments, errOut)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintln(errOut, "stock-databroker:", err)
		return 64
	}
	zerolog.SetGlobalLevel(level)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := Serve(ctx, cfg, PrintReady(out)); err != nil {
		_, _ = fmt.Fprintln(errOut, "stock-databroker:", err)
		return 1
	}
	return 0
}

func parse(arguments []string, errOut io.Writer) (Config, zerolog.Level, error) {
	var cfg Config
	var noTracer bool
	var logLevel string
	flags := flag.NewFlagSet("stock-databroker", flag.ContinueOnError)
	flags.SetOutput(errOut)
	flags.StringVar(&cfg.Address, "address", "127.0.0.1:0", "`host:port` to listen on; port 0 takes a free one")
	flags.StringVar(&cfg.SharedSecret, "shared-secret", os.Getenv("SHARED_SECRET"),
		"base64 of 32 bytes; visible to other users in the process list, so prefer the environment's SHARED_SECRET")
	flags.StringVar(&cfg.StorageType, "storage-type", "memory", "memory, file or postgres")
	flags.StringVar(&cfg.StorageConnectionString, "storage-connection-string", "",
		"file:///path for file, postgres://... for postgres")
	flags.StringVar(&cfg.LeaderAddress, "leader-address", "",
		"`host:port` of the databroker to follow; without it this server is on its own")
	flags.BoolVar(&cfg.IdentityManager, "identity-manager", false, "refresh sessions, as Pomerium's databroker does")
	flags.BoolVar(&noTracer, "no-tracer", false, "make no spans; Pomerium makes them even when nothing exports them")
	flags.DurationVar(&cfg.GracePeriod, "grace-period", 5*time.Second, "time that open calls get at shutdown")
	flags.StringVar(&logLevel, "log-level", "warn", "debug, info, warn or error; written to standard error")
	if err := flags.Parse(arguments); err != nil {
		return Config{}, zerolog.NoLevel, err
	}
	if flags.NArg() > 0 {
		return Config{}, zerolog.NoLevel, fmt.Errorf("unexpected argument %q: every setting is a flag", flags.Arg(0))
	}
	cfg.Tracer = !noTracer
	level, err := zerolog.ParseLevel(logLevel)
	if err != nil {
		return Config{}, zerolog.NoLevel, fmt.Errorf("reading --log-level: %w", err)
	}
	return cfg, level, nil
}
