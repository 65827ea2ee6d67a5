package remote

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pomerium/pomerium/pkg/storage"
)

// operatorKeys are the words of the query language for those operators whose word is not `$` and the name.
var operatorKeys = map[storage.FilterExpressionOperator]string{
	storage.FilterExpressionOperatorGreaterThan:        ">",
	storage.FilterExpressionOperatorGreaterThanOrEqual: ">=",
	storage.FilterExpressionOperatorLessThan:           "<",
	storage.FilterExpressionOperatorLessThanOrEqual:    "<=",
}

// filterMessage writes an expression in the query language, so that a server parses it back to the same expression.
func filterMessage(expression storage.FilterExpression) (*structpb.Struct, error) {
	switch expression := expression.(type) {
	case storage.AndFilterExpression:
		return combine("$and", expression)
	case storage.OrFilterExpression:
		return combine("$or", expression)
	case storage.NotFilterExpression:
		inner, err := filterMessage(expression.FilterExpression)
		if err != nil {
			return nil, err
		}
		return object("$not", structpb.NewStructValue(inner)), nil
	case storage.SimpleFilterExpression:
		key, ok := operatorKeys[expression.Operator]
		if !ok {
			key = "$" + string(expression.Operator)
		}
		message := object(key, expression.Value)
		for _, field := range slices.Backward(expression.Fields) {
			message = object(field, structpb.NewStructValue(message))
		}
		return message, nil
	default:
		return nil, fmt.Errorf("the query language has no word for a filter of type %T", expression)
	}
}

func combine(key string, expressions []storage.FilterExpression) (*structpb.Struct, error) {
	list := new(structpb.ListValue)
	for _, expression := range expressions {
		message, err := filterMessage(expression)
		if err != nil {
			return nil, err
		}
		list.Values = append(list.Values, structpb.NewStructValue(message))
	}
	return object(key, structpb.NewListValue(list)), nil
}

func object(key string, value *structpb.Value) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{key: value}}
}
