// What Grafana's own types say of a dashboard's JSON, for tests/unit/test_grafana.py: it writes each dashboard and each panel as a
// constant of one of these types, and the compiler tells what does not fit, an unknown key included.
import type { Options as BarGaugeOptions } from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type {
  FieldConfig as HeatmapCustom,
  Options as HeatmapOptions,
} from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type { Options as StatOptions } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type {
  FieldConfig as TimelineCustom,
  Options as TimelineOptions,
} from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type {
  FieldConfig as TableCustom,
  Options as TableOptions,
} from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type {
  FieldConfig as GraphCustom,
  Options as GraphOptions,
} from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type * as dashboard from "@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen";
// Later versions of the package leave Prometheus' queries to the data source's plugin.
import type { PrometheusDataQuery } from "grafana-schema-10/dist/esm/raw/composable/prometheus/dataquery/x/PrometheusDataQuery_types.gen";

// JSON has the values of enumerations, not their names.
type Plain<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer Item>
      ? Array<Plain<Item>>
      : T extends object
        ? { [Key in keyof T]: Plain<T[Key]> }
        : T;

type Property<Custom> = { id: keyof dashboard.FieldConfig | `custom.${keyof Custom & string}`; value?: unknown };

interface Fields<Custom> {
  defaults: Omit<dashboard.FieldConfig, "custom"> & { custom?: Custom };
  overrides: Array<{ matcher: { id: "byName" | "byRegexp"; options: string }; properties: Array<Property<Custom>> }>;
}

// Grafana fills what is left out; every panel here has a number, a place and a description nevertheless.
type Filled = "id" | "gridPos" | "title" | "description" | "datasource";
type Panel<Type extends string, Options, Custom> = Plain<
  Omit<dashboard.Panel, "type" | "options" | "fieldConfig" | "targets" | Filled> &
    Required<Pick<dashboard.Panel, Filled>> & {
      type: Type;
      options: Options;
      fieldConfig: Fields<Custom>;
      targets: Array<PrometheusDataQuery & { datasource: dashboard.DataSourceRef }>;
    }
>;

export type Row = Plain<dashboard.RowPanel>;
export type Stat = Panel<"stat", StatOptions, Record<never, never>>;
export type Timeseries = Panel<"timeseries", GraphOptions, GraphCustom>;
export type Heatmap = Panel<"heatmap", HeatmapOptions, HeatmapCustom>;
export type StateTimeline = Panel<"state-timeline", TimelineOptions, TimelineCustom>;
export type Table = Panel<"table", TableOptions, TableCustom>;
export type Bargauge = Panel<"bargauge", BarGaugeOptions, Record<never, never>>;

// The plugin's own keys of an annotation (PromAnnotation in @grafana/prometheus).
type Annotation = Omit<dashboard.AnnotationQuery, "target"> & {
  target: Pick<PrometheusDataQuery, "expr" | "refId">;
  step?: string;
  titleFormat?: string;
  textFormat?: string;
};

// Without its panels.
export type Dashboard = Plain<Omit<dashboard.Dashboard, "panels" | "annotations"> & { annotations: { list: Annotation[] } }>;
