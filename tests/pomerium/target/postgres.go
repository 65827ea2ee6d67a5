package target

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// The environment for tests on Postgres.
const (
	// postgresVariable is the connection string of a Postgres server, as a URL of a user that may create databases. Every
	// server under test then has a database of its own there.
	postgresVariable = "DATABROKER_POSTGRES"
	// hostsVariable is how many hosts share that database; calls go to one after the other.
	hostsVariable = "DATABROKER_HOSTS"
	// pluginVariable is the plugin of hosts on Postgres, a name or a path; `postgres` without it.
	pluginVariable = "DATABROKER_STORAGE_TYPE"
)

// databases counts those that were made by this process.
var databases atomic.Int64

// hosts is how many processes a server is: 1 unless they share a database.
func hosts(t testing.TB) int {
	t.Helper()
	text := os.Getenv(hostsVariable)
	if os.Getenv(postgresVariable) == "" || os.Getenv(addressVariable) != "" || text == "" {
		return 1
	}
	number, err := strconv.Atoi(text)
	if err != nil || number < 1 {
		t.Fatalf("%s=%s is no number of hosts", hostsVariable, text)
	}
	return number
}

func plugin() string {
	if name := os.Getenv(pluginVariable); name != "" {
		return name
	}
	return "postgres"
}

// NewDatabase makes an empty database that goes when the test has ended, and returns its connection string; "" where
// tests do not run on Postgres.
func NewDatabase(t testing.TB) string {
	t.Helper()
	server := os.Getenv(postgresVariable)
	if server == "" || Stock() {
		return ""
	}
	settings, err := pgx.ParseConfig(server)
	if err != nil {
		t.Fatalf("reading %s: %v", postgresVariable, err)
	}
	name := fmt.Sprintf("pomerium_%d_%d", os.Getpid(), databases.Add(1))
	run := func(statement string) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		connection, err := pgx.Connect(ctx, server)
		if err != nil {
			return err
		}
		defer func() { _ = connection.Close(ctx) }()
		_, err = connection.Exec(ctx, statement)
		return err
	}
	if err := run("CREATE DATABASE " + name); err != nil {
		t.Fatalf("making a database: %v", err)
	}
	t.Cleanup(func() {
		if err := run("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("removing the database: %v", err)
		}
	})
	return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s", settings.Host, settings.Port, settings.User,
		settings.Password, name)
}
