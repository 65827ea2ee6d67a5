package remote

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/grpc/session"
	"github.com/pomerium/pomerium/pkg/grpc/testproto"
	"github.com/pomerium/pomerium/pkg/protoutil"
	"github.com/pomerium/pomerium/pkg/storage"
)

// Translated is a backend for tests whose records hold test.Test, a message that Pomerium has for its tests and that a
// server of another process does not know. On the wire such a record holds a session.Session with the same strings in
// fields of the same shape, and names of fields in options and filters follow. Type and id of the record stay.
type Translated struct{ *Backend }

var _ storage.Backend = Translated{}

// translatedFields names, for each field of test.Test that tests look at, the field of session.Session in its place.
var translatedFields = map[string]string{
	"string_field":                     "user_id",
	"proto_field.another_string_field": "oauth_token.access_token",
}

// Put writes records in translation.
func (t Translated) Put(ctx context.Context, records []*databrokerpb.Record) (uint64, error) {
	translated := make([]*databrokerpb.Record, len(records))
	for i, record := range records {
		translated[i] = record
		var original testproto.Test
		if !record.GetData().MessageIs(&original) {
			continue
		}
		if err := record.GetData().UnmarshalTo(&original); err != nil {
			return 0, fmt.Errorf("reading the record to translate: %w", err)
		}
		translated[i] = proto.CloneOf(record)
		translated[i].Data = protoutil.NewAny(&session.Session{
			UserId:     original.GetStringField(),
			OauthToken: &session.OAuthToken{AccessToken: original.GetProtoField().GetAnotherStringField()},
		})
	}
	return t.Backend.Put(ctx, translated)
}

// SetOptions translates the fields to index.
func (t Translated) SetOptions(ctx context.Context, recordType string, options *databrokerpb.Options) error {
	options = proto.CloneOf(options)
	for i, field := range options.GetIndexableFields() {
		options.IndexableFields[i] = translatedField(field)
	}
	return t.Backend.SetOptions(ctx, recordType, options)
}

// SyncLatest translates the field of a comparison.
func (t Translated) SyncLatest(
	ctx context.Context, recordType string, filter storage.FilterExpression,
) (serverVersion, recordVersion uint64, _ storage.RecordIterator, _ error) {
	if comparison, ok := filter.(storage.SimpleFilterExpression); ok {
		comparison.Fields = strings.Split(translatedField(strings.Join(comparison.Fields, ".")), ".")
		filter = comparison
	}
	return t.Backend.SyncLatest(ctx, recordType, filter)
}

func translatedField(field string) string {
	if translated, ok := translatedFields[field]; ok {
		return translated
	}
	return field
}
